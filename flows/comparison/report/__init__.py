"""What the cells say together: charts, their sentences, the answer in words and the page."""
