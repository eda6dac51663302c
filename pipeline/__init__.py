"""The machinery around BioTune: parameters, the search loop, the evaluation store, MLflow."""
