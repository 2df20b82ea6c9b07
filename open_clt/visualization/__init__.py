"""Figures: functions that draw arrays and records with matplotlib; they return or save a figure and never show it."""
