"""Objects of the library as terminal text, JSON and HTML: the only place that formats."""
