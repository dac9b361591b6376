"""What a config costs on a machine, before it is paid for: `medkor plan`.

    planner.make_plan(recipe, name, config, topology)        # compiles every stage for chips that are not there
"""
