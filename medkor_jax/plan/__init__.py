"""What a config costs on a machine, before it is paid for: `medkor plan`.

    planner.plan(recipe, model, topology)        # compiles every stage for chips that are not there
"""
