"""Paths, predictions, objectives and solvers of diffusion and flow models: functions of arrays that know no network."""
