# doppel.bash - completion of doppel's command line for bash
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
        mapfile -t COMPREPLY < <(compgen -W 'run help version --help --version' -- "$cur")
        return
    fi
    case $prev in
    --engine) mapfile -t COMPREPLY < <(compgen -W 'auto kvm bt interp' -- "$cur") ;;
    --engines) mapfile -t COMPREPLY < <(compgen -W 'kvm,bt kvm,bt,interp bt,interp' -- "$cur") ;;
    --log) mapfile -t COMPREPLY < <(compgen -W 'error warn info debug trace' -- "$cur") ;;
    --on-reboot) mapfile -t COMPREPLY < <(compgen -W 'reset exit' -- "$cur") ;;
    --disk) compopt -o nospace; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    --serial) mapfile -t COMPREPLY < <(compgen -W 'stdio none file: unix:' -- "$cur") ;;
    --cpu-model) mapfile -t COMPREPLY < <(compgen -W 'host help' -- "$cur") ;;
    --memory | --code-cache | --cpus | --cmdline | --switch-storm) ;;
    --kernel | --initrd | --perf-map | --dump-blocks)
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        ;;
    *)
        mapfile -t COMPREPLY < <(compgen -W '--engine --engines --cpus --memory --cpu-model --kernel --initrd
            --cmdline --disk --serial --debug-exit --test-device --on-reboot --stats --log --code-cache --perf-map
            --dump-blocks --switch-storm --help --version' -- "$cur")
        ;;
    esac
}
complete -F _doppel doppel
