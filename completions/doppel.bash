# doppel.bash - completion of doppel's command line for bash

# The commands on running machines: $1 command, $2 current word, $3 the one before
_doppel_command() {
    local options='--json --help'
    case $1 in
    switch)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$2"; compgen -W --help -- "$2")
        return
        ;;
    stop) options+=' --timeout --hard --button --no-wait' ;;
    ps | status | pause | resume | stats | engine | balloon | link | resize) ;;
    *) return ;;
    esac
    if [[ $3 == --timeout ]]; then
        return
    elif [[ $2 == -* || $1 == ps ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$2")
    elif [[ $1 == engine && $COMP_CWORD -gt 2 && $3 != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'kvm bt interp' -- "$2")
    elif [[ $1 == link && $COMP_CWORD -gt 2 && $3 != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'up down' -- "$2")
    elif [[ $2 == */* ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$2")
    else
        mapfile -t COMPREPLY < <(compgen -W "$(doppel ps 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$2")
    fi
}

# doppel image: $1 its command, $2 current word, $3 the one before
_doppel_image() {
    local new='--format --cluster-size --compression --preallocation --lazy-refcounts --compat --force' options
    case $1 in
    create) options="$new --backing --backing-format" ;;
    info) options='--format --json' ;;
    resize) options='--format --shrink' ;;
    check) options='--format --repair --json' ;;
    convert) options="$new --source-format --compress" ;;
    commit) options='--format' ;;
    *) return ;;
    esac
    case $3 in
    --format | --source-format | --backing-format) mapfile -t COMPREPLY < <(compgen -W 'raw qcow2' -- "$2") ;;
    --compression) mapfile -t COMPREPLY < <(compgen -W 'zlib zstd' -- "$2") ;;
    --preallocation) mapfile -t COMPREPLY < <(compgen -W 'off metadata falloc' -- "$2") ;;
    --compat) mapfile -t COMPREPLY < <(compgen -W '2 3' -- "$2") ;;
    --repair) mapfile -t COMPREPLY < <(compgen -W 'leaks all' -- "$2") ;;
    --cluster-size) ;;
    *)
        if [[ $2 == -* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$options --help" -- "$2")
        else
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$2")
        fi
        ;;
    esac
}

_doppel() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    # "=" is a word of its own to readline.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if [[ $COMP_CWORD -eq 1 ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'run image switch ps status pause resume stop stats engine balloon link resize help version
            --help --version' -- "$cur")
        return
    fi
    if [[ ${COMP_WORDS[1]} == image ]]; then
        if [[ $COMP_CWORD -eq 2 ]]; then
            mapfile -t COMPREPLY < <(compgen -W 'create info resize check convert commit --help' -- "$cur")
        else
            _doppel_image "${COMP_WORDS[2]}" "$cur" "$prev"
        fi
        return
    fi
    if [[ ${COMP_WORDS[1]} != run ]]; then
        _doppel_command "${COMP_WORDS[1]}" "$cur" "$prev"
        return
    fi
    case $prev in
    --engine) mapfile -t COMPREPLY < <(compgen -W 'auto kvm bt interp' -- "$cur") ;;
    --engines) mapfile -t COMPREPLY < <(compgen -W 'kvm,bt kvm,bt,interp bt,interp' -- "$cur") ;;
    --firmware) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -W 'auto seabios ovmf' -- "$cur") ;;
    --kvm-irqchip) mapfile -t COMPREPLY < <(compgen -W 'auto on off' -- "$cur") ;;
    --log) mapfile -t COMPREPLY < <(compgen -W 'error warn info debug trace' -- "$cur") ;;
    --on-reboot) mapfile -t COMPREPLY < <(compgen -W 'reset exit' -- "$cur") ;;
    --disk) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    --net) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -W 'none user user,hostfwd= tap tap,ifname= tap,queues= socket:' -- "$cur") ;;
    --share) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    --serial | --console) mapfile -t COMPREPLY < <(compgen -W 'stdio none file: unix: pty:' -- "$cur") ;;
    --port) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -W 'name=' -- "$cur") ;;
    --balloon) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -W 'none on on,reporting on,deflate-on-oom' -- "$cur") ;;
    --cpu-model) mapfile -t COMPREPLY < <(compgen -W 'host help' -- "$cur") ;;
    --vsock) ;;
    --memory | --code-cache | --cpus | --cmdline | --switch-storm | --name | --uuid) ;;
    --firmware-vars | --kernel | --initrd | --control | --perf-map | --dump-blocks)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    *)
        if [[ -n $cur && $cur != -* ]]; then # IMAGE
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return
        fi
        mapfile -t COMPREPLY < <(compgen -W '--engine --engines --kvm-irqchip --cpus --memory --cpu-model --firmware --firmware-vars --kernel --initrd
            --cmdline --disk --ephemeral --net --share --serial --debug-exit --test-device --on-reboot --name --uuid --control --stats --log --code-cache
            --console --port --balloon --vsock
            --perf-map --dump-blocks --switch-storm --help --version' -- "$cur")
        ;;
    esac
}
complete -F _doppel doppel
