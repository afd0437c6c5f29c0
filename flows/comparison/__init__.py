"""The comparison of methods: sets, cells, plan and page."""
