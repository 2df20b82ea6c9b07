"""Attribution graphs in the file formats of other programs."""
