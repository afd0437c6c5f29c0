"""`soe up | down`: Prefect server, worker and Ray head on loopback."""
