"""Plans a run for a TPU that isn't there: compiles its programs, says what they take.

chips       knows names, capacities and topologies of TPU slices
programs    lists the programs of a run, with abstract arguments and the arithmetic they do
hlo         finds the collectives and loops of a compiled program
estimate    estimates a program's time by the roofline
planner     compiles them all, adds up, proposes settings where something doesn't fit
"""
