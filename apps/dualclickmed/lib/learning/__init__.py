"""Learning from annotators: read their labels, keep a record, retrain, publish what is no worse.

Nothing here needs MONAI Label; `trainers` and `activelearning` connect its server to this package.
"""
