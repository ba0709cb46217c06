"""IG-Search with OpenRLHF: Ray places the processes, vLLM samples, DeepSpeed trains.

The environment, the gains and the credit functions are those of the local trainer; what is here
carries episodes to them and advantages back. :mod:`trainers.openrlhf.seams` lists every place of
OpenRLHF that this depends on.
"""
