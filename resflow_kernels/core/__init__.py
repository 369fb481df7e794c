"""What a model is, without torch: the plan, score fusion, folded affines, the packed layout, results."""
