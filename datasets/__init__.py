"""Data sets: what a method may know of the data (`spec`) and one file per data set."""
