"""HTTP: routes, schemas, the image door."""
