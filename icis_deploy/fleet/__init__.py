"""What the devices of a fleet reported, as one table and one page."""
