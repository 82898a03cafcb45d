"""Saving in the background: jobs in threads, the writer task, the catalog of commits and retention."""
