"""Other frameworks on the work of `bench rounds`: one file each, and one that drives them."""
