"""The model without torch: the plan, score fusion, folded affines, the packed layout, results."""
