"""A site's data: readers of its files, what a plan demands of them, ways to split one data set.

What is raised here travels to the aggregator as the reason of a failure. So no message holds a
value of the data, a name that stands in a file, or a file's name: only the plan's own words,
positions and counts.
"""
