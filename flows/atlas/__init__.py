"""The domain atlas as one page."""
