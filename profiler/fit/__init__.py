"""`simbatch fit`: step times of measured steps (here), of a recorder's files, of benchmark results."""
