"""Jobs of several processes: started here, or written for a cluster to start."""
