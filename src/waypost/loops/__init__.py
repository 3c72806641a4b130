"""When things happen: loops are steps, one file each."""
