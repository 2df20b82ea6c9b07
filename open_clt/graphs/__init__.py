"""Attribution graphs: what a graph is, and what can be done with one."""
