"""Attribution graphs: their nodes, edges and settings, and operations on them."""
