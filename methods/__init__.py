"""Methods: the contract (`base`), shared mathematics and networks (`parts`), one file per paper."""
