"""Making data sets and checking them: converters, records, drawn shapes."""
