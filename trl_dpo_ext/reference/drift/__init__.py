"""Measurement and calibration of an inexact reference."""
