"""Sweeps of gcsr trials: from a spec to a store, from a store to a report.

The modules in layers. Each imports only from its own layer and from those above it (``tests/tune/test_layers.py``)::

    words and columns  words, terminal, passwords, provenance, schema, formats, paper, pareto
    what to run        search_spec, spec
    storage            filesystem, node_data, networks, folder, folder_lock, lease, rows, store, compaction
    trials             job, cutting, trial, units
    what is told       events, recorder, store_writer, progress, sweep_log, sweep_metrics, tensorboard
    executors          inline_executor, placement, capacity, node_check, quarantine, imports, forked_worker,
                       warm_workers, worker_template, local_ray, ray_connection, ray_scheduler, ray_searcher,
                       trainable, workers, relay, ray_executor
    runs               run_options, manifest, row_source, runs, sweep, lines, study, search_identity, search,
                       tolerance, merge
    statistics         stats, summary, found, aggregate, curves
    reports            tables, verdict, figures, static_figures, plotly_figures, search_report, flat, report, html,
                       reporting, watch
    commands           endings, options, preview, train, cli
"""
