"""What is made of merged intensities, of stills and of sweeps: amplitudes, their statistics, free flags, Table 1."""
