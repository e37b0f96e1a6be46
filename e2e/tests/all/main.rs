//! The end-to-end tests. What every driver has to pass is listed once, below, and runs on each; the others are named after
//! their subject. `cargo test -p e2e qemu` selects a driver, `cargo test -p e2e image::` a subject.

mod chaos;
mod cli;
mod connections;
mod container;
mod corporate;
mod correctness;
mod crash;
mod datagrams;
mod execute;
mod failure;
mod fidelity;
mod files;
mod firecracker;
mod firecracker_many;
mod firecracker_network;
mod firecracker_pager;
mod firecracker_snapshot;
mod firecracker_template;
mod gauntlet;
mod health;
mod hostile;
mod image;
mod lifecycle;
mod login;
mod logs;
mod many;
mod network;
mod network_bridge;
mod network_counters;
mod network_figures;
mod network_many;
mod network_policy;
mod network_red_team;
mod network_rootless;
mod network_user;
mod node;
mod parity;
mod pause;
mod pool;
mod ports;
mod process;
mod pull;
mod recovery;
mod resources;
mod secret;
mod setup;
mod snapshot;
mod stage;
mod standby;
mod store;
mod streams;
mod support;
mod template;
mod terminal;
mod users;
mod verbs;

/// Makes each function a test of a driver: on a ready node of that driver, which must leave nothing.
macro_rules! on_driver {
    ($module:ident, $driver:expr, [$($subject:ident::$name:ident,)*]) => {
        mod $module {
            $(
                #[test]
                fn $name() -> anyhow::Result<()> {
                    e2e::check(e2e::TestNode::ready($driver), crate::$subject::$name)
                }
            )*
        }
    };
}

on_driver!(
    qemu,
    e2e::Driver::Qemu,
    [
        process::run_exits_as_docker_does,
        process::run_gives_what_was_asked_for,
        process::command_is_pid_1_and_sees_only_itself,
        process::exec_joins_the_namespaces_of_the_workload,
        process::exec_exits_as_docker_does,
        process::zombies_are_reaped,
        process::processors_and_memory_are_those_asked_for,
        container::settings_shape_the_workloads_world,
        container::settings_that_cannot_be_are_refused,
        container::a_machine_that_holds_runs_nothing_and_takes_what_comes,
        container::a_detached_exec_goes_on,
        parity::run_and_exec_behave_as_the_reference_does,
        streams::outputs_stay_apart_and_whole,
        streams::eight_mib_go_through_cat_unchanged,
        streams::a_command_may_end_before_its_input,
        streams::a_closed_pipe_ends_the_command_line,
        streams::several_execs_run_at_once,
        terminal::run_it_is_a_terminal,
        terminal::exec_it_is_a_terminal_and_exec_is_none,
        terminal::detaching_leaves_the_machine_running_and_what_is_missed_is_shown,
        lifecycle::signals_reach_the_workload,
        lifecycle::stop_asks_first_and_kills_then,
        lifecycle::kill_sends_any_signal,
        lifecycle::wait_prints_exit_codes,
        lifecycle::remove_refuses_what_runs,
        lifecycle::ps_and_inspect_tell_the_state,
        lifecycle::a_name_belongs_to_one_machine,
        lifecycle::a_restarted_machine_keeps_its_files,
        lifecycle::run_rm_leaves_nothing,
        lifecycle::timeout_stops_the_machine,
        logs::logs_keep_both_outputs,
        logs::logs_follow_to_the_end,
        logs::since_and_until_cut_a_stretch_out,
        logs::a_follower_sees_every_line_across_rotations,
        logs::a_flood_reaches_who_is_attached_and_little_is_kept,
        logs::console_shows_the_kernel,
        health::health_follows_the_probes_and_outlives_the_node,
        health::probes_reach_the_guests_loopback,
        health::a_probe_that_hangs_is_killed_at_its_limit,
        health::nothing_is_probed_while_the_machine_is_paused,
        health::a_health_check_that_cannot_be_is_refused,
        resources::stats_agree_with_other_measurements,
        resources::a_monitor_is_confined_by_cgroups,
        files::a_file_survives_both_ways,
        files::a_tree_survives_both_ways,
        files::archives_go_through_pipes,
        files::a_large_file_survives_both_ways,
        files::what_is_not_there_is_refused,
        ports::published_ports_reach_the_guests_loopback,
        ports::a_port_that_is_taken_is_refused_before_the_boot,
        ports::published_ports_outlive_the_node_and_end_with_the_machine,
        pause::a_paused_machine_stands_still_and_goes_on,
        pause::a_paused_machine_goes_on_to_be_stopped,
        verbs::restart_policies_restart_what_they_say,
        verbs::a_machine_that_always_runs_outlives_its_monitor_and_its_node,
        verbs::machines_are_created_renamed_updated_and_pruned,
        verbs::events_tell_what_happens_in_order,
        verbs::top_lists_the_processes_inside,
        verbs::execs_are_told_as_events,
        verbs::an_idle_machine_ends_and_a_busy_one_does_not,
        pool::a_pool_hands_out_machines_and_fills_up,
        pool::code_runs_in_a_machine_of_a_pool,
        pool::code_ends_with_its_time_also_when_its_node_has_died,
        pool::a_lease_ends_with_its_time_and_its_machine,
        pool::pools_and_leases_outlive_the_node,
        pool::pools_that_cannot_be_are_refused,
        execute::code_runs_once_with_its_workspace,
        execute::code_comes_by_standard_input_and_by_one_request,
        execute::an_execution_that_cannot_be_leaves_nothing,
        execute::an_execution_ends_with_its_time_its_client_and_its_node,
        ports::connections_are_many_at_once,
        snapshot::what_a_snapshot_kept_goes_on_in_another_machine,
        snapshot::diffs_keep_what_has_changed_and_make_whole_machines,
        snapshot::a_rollback_takes_a_machine_back_to_what_it_was,
        correctness::forks_are_machines_of_their_own,
        snapshot::forks_go_on_where_the_machine_is_which_does_not_notice,
        snapshot::snapshots_that_cannot_be_are_refused_and_leave_nothing,
        snapshot::an_exported_snapshot_comes_back_whole,
        snapshot::a_connection_and_a_timer_do_not_notice_forks,
        template::the_second_machine_is_a_clone_unless_it_is_told_to_boot,
        template::a_workload_is_kept_when_it_is_well_and_warm,
        template::templates_of_no_use_are_pruned,
        template::of_first_machines_that_start_at_once_one_boots,
        template::a_damaged_template_is_thrown_away_and_made_anew,
        template::clones_are_machines_of_their_own,
        template::a_clone_has_every_setting_of_its_own,
        secret::a_secret_is_in_the_environment_and_nowhere_else,
        many::boots_one_after_the_other,
        many::fifty_machines_leave_nothing,
        failure::a_monitor_that_dies_says_why,
        failure::a_silent_guest_is_given_up,
        failure::memory_out_of_bounds_is_refused,
    ]
);
