"""Texts → specialists: what command, flow and service share."""
