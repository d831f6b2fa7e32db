-- cells under 30, and the next ones until 30 or more are hidden together: else the sum would tell them
sized as (
    select *, coalesce(sum(decided) over (partition by {{ cell }}
                                          order by decided >= 30, "group" is not null, decided, "group"
                                          rows between unbounded preceding and 1 preceding), 0) as before
    from cells
), hidden as (
    select *, decided < 30 or before > 0 and before + {{ missing | default(0) }} < 30 as hidden from sized
)
