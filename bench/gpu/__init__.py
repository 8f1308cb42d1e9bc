"""Speed and memory on a GPU to which nothing can be downloaded, in one run under ten minutes: `python -m bench.gpu`."""
