"""A loopback Azure Machine Learning workspace that runs the jobs submitted to it; see README.md."""
