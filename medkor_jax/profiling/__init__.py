"""`medkor profile`: where the time of a training step goes. Traces for XProf, and a table made of the same trace."""
