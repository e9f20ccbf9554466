"""Reports: charts, tables and pages."""
