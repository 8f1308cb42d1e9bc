"""Speed and memory beside peers, on the same job, alternating in one run. `python -m bench [NAME]`."""
