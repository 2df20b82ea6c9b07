"""Attribution graphs: what caused what in one forward pass, through a transcoder's features."""
