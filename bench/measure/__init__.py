"""What `bench/run.py` measures, a file for each part of the server. Every measurement is a function of a Run that yields rows."""
