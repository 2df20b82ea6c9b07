"""Figures: arrays and records in, matplotlib figures out. Nothing here is ever shown, only returned or saved."""
