"""What became better, by how much, and how sure that is: numbers with intervals, and the report page."""
