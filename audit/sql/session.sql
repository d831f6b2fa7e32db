select set_config('lock_timeout', %s, false), set_config('idle_in_transaction_session_timeout', %s, false)
