"""One file per stage; layout.py has the list of stages and the files between them."""
