"""Plans a run for a machine that isn't there: compiles its programs, says what they take.

chips       knows names, capacities and speeds of TPU slices and of machines with GPUs
cuda        describes GPUs to XLA's compiler, so that it needs none
host        measures this machine, for plans of runs on its processor
machines    finds the machine that a user names, and its devices
programs    lists the programs of a run, with abstract arguments and the arithmetic they do
hlo         finds the collectives, loops and kernels of a compiled program
estimate    estimates a program's time by the roofline
storage     counts the checkpoints that a run keeps
planner     compiles them all, adds up, proposes settings where something doesn't fit
text        writes a plan for a terminal, and says what it stands on
"""
