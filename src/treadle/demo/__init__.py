"""The demonstration that comes with Treadle: a real folder, copied and verified by workers that may be killed."""
