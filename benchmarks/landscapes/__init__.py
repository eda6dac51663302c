"""Recorded trainings of many plans: ground on which a search can be tried a thousand times."""
