"""Documents from any corpus: its files are listed, then read one by one."""
