"""An exported model over HTTP: FastAPI, uvicorn and what a Predictor needs; no torch."""
