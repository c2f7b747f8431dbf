# shellcheck shell=bash
# ONNX Runtime with CUDA, and NVIDIA's libraries that it needs; sourced by setup.sh, never run. Needs lib.sh.
#
# All of one set lie in one folder. The plugin loads what the provider needs from the folder of libonnxruntime before it
# asks the loader, and NVIDIA's libraries look for each other beside themselves (their RUNPATH begins with $ORIGIN), so no
# LD_LIBRARY_PATH is needed. The driver (libcuda.so.1) is the machine's.

CUDA_VERSIONS=(13 12)

# What belongs to a set: lines `wheel NAME==VERSION PLATFORM SHA256 MB_TO_FETCH MB_UNPACKED`, each with its files `SHA256
# MEMBER` below it. Of NVIDIA's only what ONNX Runtime's provider is linked with or opens at run time, and what those open
# in turn (cuDNN and cuFFT: nvrtc and nvJitLink).
cuda_files() { # 13|12
    case $1 in
    13)
        cat <<'LINES'
wheel onnxruntime-gpu==1.31.1 manylinux_2_28_x86_64 e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6 256 315
5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303 onnxruntime/capi/libonnxruntime.so.1.31.1
d5290158115fa5569a3fe8f1f4037ee9b0e86658a96e52f852bbb7039aa88137 onnxruntime/capi/libonnxruntime_providers_cuda.so
086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d onnxruntime/capi/libonnxruntime_providers_shared.so
1882ee49fdb0e6fc2d272b00cfaf9a3310bf8580a34385c0eec4d82014ea172e onnxruntime/capi/libonnxruntime_providers_tensorrt.so
wheel nvidia-cuda-runtime==13.5.37 manylinux_2_17_x86_64 df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d 3 1
be114eaabb3f3251cf30b6e334be5e8c3cf1b12c0a11c17295a810dd83cc141a nvidia/cu13/lib/libcudart.so.13
wheel nvidia-cublas==13.10.0.20 manylinux_2_5_x86_64 dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84 445 609
863f349b5352363c66079090d43d9d56ad3d676373ecac18418fd4fb2d0579d1 nvidia/cu13/lib/libcublas.so.13
b58e18ab4a6adc9bf4833d5cfe28db688e675fd6021db7eaf5da78d23f95d2de nvidia/cu13/lib/libcublasLt.so.13
wheel nvidia-curand==10.4.5.25 manylinux_2_27_x86_64 22bb226a857e5888fe6b54ae465fc4371296bcff13a35f79e19691bcf454f529 78 105
82586610865e67dc73505087e04dd40a3cc69b281028731ce763faafe14b1347 nvidia/cu13/lib/libcurand.so.10
wheel nvidia-cufft==12.5.0.14 manylinux_2_17_x86_64 b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad 166 237
fbc2100d3725d93ebd5c407c4c33717097f34ec0fd01ee899be4c9712b671774 nvidia/cu13/lib/libcufft.so.12
wheel nvidia-cuda-nvrtc==13.5.37 manylinux_2_12_x86_64 86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc 59 149
6cecb2fd3e562bab1cb1c6e192f8f828157683c8febb22a00e178f9faf4e7f6a nvidia/cu13/lib/libnvrtc-builtins.so.13.5
98a317ff5d2176dee5a04235c6663f8d553d5ed95b3104cbf7fb198cbf76a10d nvidia/cu13/lib/libnvrtc.so.13
wheel nvidia-nvjitlink==13.5.37 manylinux_2_12_x86_64 280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb 47 118
0ba4a7e2c0819291ce928513755f4931dd69c77c63fb77677d14dc1360f28601 nvidia/cu13/lib/libnvJitLink.so.13
wheel nvidia-cudnn-cu13==9.28.1.4 manylinux_2_27_x86_64 a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec 517 941
f756cabeed9b481134769fdbc0c2ae022cf52ac39aab08be26ea990a56da2efc nvidia/cudnn/lib/libcudnn.so.9
d69ed7d8adc4524ddb6cbf5e10211e35f580d14e40924692f0cdf1b78cf23ab2 nvidia/cudnn/lib/libcudnn_adv.so.9
2512f47e6e33000e12be5b2e59ac71eb8f5805a548561e7637e4413d1b7cdeb7 nvidia/cudnn/lib/libcudnn_cnn.so.9
51bd1d25591ae2994120aac5c5be172e31b973e0fdeba43a50647949096ee40a nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9
738655d1b9441a752fde9b9911780635e60fe96113f2b06c1af6d70458ef5174 nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9
ff088c803f896fd9a92c0ab861026ff3b7ee5a4222713c3dd8221e1c843e74ec nvidia/cudnn/lib/libcudnn_engines_tensor_ir.so.9
46c273e178b7733ffa5d56bd9719f378a20b94e07d2ccf23c4078e22bced0652 nvidia/cudnn/lib/libcudnn_ext.so.9
06c28f04f028466cf33461a7d645210146015d425a0dae6c7dc7e60c07c4d973 nvidia/cudnn/lib/libcudnn_graph.so.9
7738da4dd6fee9597680ff595863743b2bc4bd5b0ec3edb4e8e9d28a2b5e629d nvidia/cudnn/lib/libcudnn_heuristic.so.9
e849b0a7353eec5bb5c9f75d841d075d786e205d84f8fd07b092770554674e48 nvidia/cudnn/lib/libcudnn_ops.so.9
LINES
        ;;
    12)
        cat <<'LINES'
wheel onnxruntime-gpu==1.24.4 manylinux_2_28_x86_64 c2a698659271c28220b3f56fe9b63f70eae3b3c36afa544201bf750b929a36dc 253 391
b10825f4306b01a4951c528554f2495c4597080c63637b300669544d9c142e76 onnxruntime/capi/libonnxruntime.so.1.24.4
3c4645a1f7c9b687b5480b8bd6235311b139b657a7ebee19f95c7340efac1c76 onnxruntime/capi/libonnxruntime_providers_cuda.so
086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d onnxruntime/capi/libonnxruntime_providers_shared.so
e735b9fdc61a3953940d1be32cada651738ccb1f570cde8a3a3d1b0cf98290e2 onnxruntime/capi/libonnxruntime_providers_tensorrt.so
wheel nvidia-cuda-runtime-cu12==12.9.79 manylinux_2_17_x86_64 25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3 4 1
256e6409e4f06f618e1fb53d4844a6b81cdded1013afa8ade40c22f99eb133b7 nvidia/cuda_runtime/lib/libcudart.so.12
wheel nvidia-cublas-cu12==12.9.3.13 manylinux_2_27_x86_64 d7d51055f161b317c7105ddaae90e71eda059026074ffef93cf7cde2886bfe72 582 855
9b6997d8ac06badb59b90fd08cb89b1f807576306f6b0d762f3e72000b69d260 nvidia/cublas/lib/libcublas.so.12
fbbf5c66fcc42c4eb6e56a7cb40be3936edbf0d08e757761e95c84afb9606cb6 nvidia/cublas/lib/libcublasLt.so.12
wheel nvidia-curand-cu12==10.3.10.19 manylinux_2_27_x86_64 49b274db4780d421bd2ccd362e1415c13887c53c214f0d4b761752b8f9f6aa1e 69 167
ab8c07338fa663c018b16df5b3f3878c84aaae98bda930e9e8bad340427b0faa nvidia/curand/lib/libcurand.so.10
wheel nvidia-cufft-cu12==11.4.1.4 manylinux_2_17_x86_64 c67884f2a7d276b4b80eb56a79322a95df592ae5e765cf1243693365ccab4e28 201 292
e1d65ebd08895f9d9883f848f3974f89e0130416252477b18835ba7f15d159bc nvidia/cufft/lib/libcufft.so.11
wheel nvidia-cuda-nvrtc-cu12==12.9.86 manylinux_2_12_x86_64 210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4 90 114
6507cf33450cfb22970c2c1e7aa8e7c0a33e39d864720277b05f61a92791e2e8 nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9
7c67c6b51ea0e0279634cebd676ff7efda1674806444520c84430ad5c35fe625 nvidia/cuda_nvrtc/lib/libnvrtc.so.12
wheel nvidia-nvjitlink-cu12==12.9.86 manylinux_2_12_x86_64 e3f1171dbdc83c5932a45f0f4c99180a70de9bd2718c1ab77d14104f6d7147f9 40 96
02d3acb5fe598dd20f0fca3cc03734ad164037a22747a01900561a42d0b8448f nvidia/nvjitlink/lib/libnvJitLink.so.12
wheel nvidia-cudnn-cu12==9.28.0.42 manylinux_2_27_x86_64 9ff58b7f36dacd0a93e89f8f2957b52466889217963701daa15e577317cfa375 717 1163
727cf38cefa39f745dee3caa207395163a86e8fafdb47e3af6d185fdd67858d4 nvidia/cudnn/lib/libcudnn.so.9
d7a4f6de7c83eb39506d424cf8f1a6f3715faeee2320f2cc03498c9dcc10283b nvidia/cudnn/lib/libcudnn_adv.so.9
5bccc296c64d21ef9326c70ccdcf01b149122dd242ec80a2d3bdc2a4389879ad nvidia/cudnn/lib/libcudnn_cnn.so.9
9a9bbe2c9d4be6c324760199f667fa84a2a9a2d66820b8ca55844b9da235e837 nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9
8b49b082768bda0ac9f2465c235331e727682f92139ad41f15276b81f20f0f96 nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9
78aa90a0543dd7b097701708f28981657ad04b95d3cac387fed960765404985e nvidia/cudnn/lib/libcudnn_engines_tensor_ir.so.9
7614a9e626eeeacbcfc8aa6633700e3cd4321e18497447825172d2d21f0b0e6f nvidia/cudnn/lib/libcudnn_ext.so.9
d56ec4d0cc21836e0138e4e75dcf6a1e589687675e9d6da0d006936ef7169078 nvidia/cudnn/lib/libcudnn_graph.so.9
ab31bec932bc0b37431dfed946ec4c373441e0d5a62ad477e6cd19fc805e7577 nvidia/cudnn/lib/libcudnn_heuristic.so.9
fbc82ffd752ec10601b2001226dee311b7ddd034c93a30c3536f2bbd19361b0c nvidia/cudnn/lib/libcudnn_ops.so.9
LINES
        ;;
    esac
}

# --- which ---------------------------------------------------------------------------------------

# Prints the CUDA version, `13.0`, that the machine's driver is for; nothing without a driver.
driver_cuda_version() {
    local version
    version=$(nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA[A-Za-z ]* Version *: *([0-9]+\.[0-9]+).*/\1/p' | head -n 1) || true
    if [ -z "$version" ]; then
        version=$(python3 - 2>/dev/null <<'PY'
import ctypes
version = ctypes.c_int()
if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
    print(f"{version.value // 1000}.{version.value % 1000 // 10}")
PY
        ) || true
    fi
    printf '%s' "$version"
}

# Prints the version of CUDA, 13 or 12, whose libraries the system has for the loader; nothing without any.
system_cuda_major() {
    local major known
    known=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null) || true
    for major in "${CUDA_VERSIONS[@]}"; do
        if [[ $known == *"libcublasLt.so.$major "* ]] || [ -n "$(library_beside "libcublasLt.so.$major")" ]; then
            printf '%s' "$major"
            return
        fi
    done
}

# Prints the file of that name in LD_LIBRARY_PATH.
library_beside() { # NAME
    local folder
    while read -r -d : folder; do
        if [ -e "$folder/$1" ]; then
            printf '%s' "$folder/$1"
            return
        fi
    done <<<"${LD_LIBRARY_PATH:-}:"
}

# Sets CUDA_MAJOR, from what was asked for (nothing, 13, 12, system) and from what the machine has.
choose_cuda() { # ASKED
    local version cards
    case $1 in
    12 | 13)
        CUDA_MAJOR=$1
        return
        ;;
    system)
        CUDA_MAJOR=$(system_cuda_major)
        [ -z "$CUDA_MAJOR" ] || return 0
        ;;
    esac
    version=$(driver_cuda_version)
    case ${version%%.*} in
    "")
        # Where nothing is to be fetched, what is there must do.
        CUDA_MAJOR=$(fetched_cuda "$1")
        [ -n "$CUDA_MAJOR" ] || [ "$1" != system ] ||
            die "the loader finds no CUDA here (libcublasLt.so.13 or libcublasLt.so.12), and there is no NVIDIA driver that tells which it should be: install CUDA and cuDNN 9 first, or have them fetched with --cuda=13 or --cuda=12"
        [ -n "$CUDA_MAJOR" ] ||
            die "no NVIDIA driver is here (neither nvidia-smi nor libcuda.so.1): say --cuda=13 or --cuda=12 for the machine that this is meant for"
        ;;
    [0-9] | 10 | 11) die "the driver is for CUDA $version, and ONNX Runtime needs one for CUDA 12 or 13: install driver 525 or later (580 for CUDA 13)" ;;
    12) CUDA_MAJOR=12 ;;
    *) CUDA_MAJOR=13 ;; # drivers run what was made for earlier versions
    esac
    # What --print-env prints is for the shell.
    if [ "$CUDA_MAJOR" = 13 ] && cards=$(cards_for_12_alone); then
        say "the driver is for CUDA $version, but a GPU of compute capability $cards is here, for which only what is fetched for CUDA 12 has kernels: taking that" >&2
        CUDA_MAJOR=12
    fi
}

# Prints the compute capabilities of GPUs here on which what is pinned for CUDA 12 runs and what is pinned for 13 does not; fails where
# there are none, or nobody tells. The latter has machine code for 7.5, 8.0, 8.6, 8.9, 9.0 and 12.0, the former for 6.0 to 9.0 and code
# that the driver compiles for all later ones.
cards_for_12_alone() {
    local capability found=()
    while read -r capability; do
        case $capability in
        7.5 | 8.[0-9] | 9.[0-9] | 12.[0-9]) ;;
        [67].[0-9] | [1-9][0-9].[0-9]) [[ " ${found[*]} " == *" $capability "* ]] || found+=("$capability") ;;
        esac
    done < <(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null || true)
    [ ${#found[@]} -gt 0 ] || return 1
    printf '%s' "${found[*]}"
}

# Prints the only set that is there, for a machine without a driver; nothing where there is a choice or none.
fetched_cuda() { # ASKED
    local major found=()
    [ "$PRINT" = 1 ] || return 0
    for major in "${CUDA_VERSIONS[@]}"; do
        [ ! -f "$(cuda_library "$major" "$1")" ] || found+=("$major")
    done
    [ ${#found[@]} != 1 ] || printf '%s' "${found[0]}"
}

# Prints where ONNX Runtime of a set is. What uses the system's libraries has a folder of its own, since those beside
# ONNX Runtime come first.
cuda_library() { # 13|12 ASKED
    local folder=cuda version
    [ "$1" = 13 ] || folder+=$1
    [ "$2" != system ] || folder+=-system
    version=$(cuda_files "$1" | sed -n 's/^wheel onnxruntime-gpu==\([^ ]*\) .*/\1/p')
    printf '%s' "$ASSETS/$folder/libonnxruntime.so.$version"
}

# --- fetching ------------------------------------------------------------------------------------

# Sets CUDA_WANTED to the wheels of the set that have to be fetched, after a look at every file; says how much that is, and
# ends the script where the disk has no room.
plan_cuda() { # ASKED
    local folder first rest member name platform sha fetch unpacked total=0 space=0 largest=0 free
    CUDA_LIBRARY=$(cuda_library "$CUDA_MAJOR" "$1")
    folder=${CUDA_LIBRARY%/*}
    CUDA_WANTED=()
    while read -r first rest; do
        if [ "$first" = wheel ]; then
            read -r name platform sha fetch unpacked <<<"$rest"
            continue
        fi
        [ "$1" != system ] || [[ $name == onnxruntime-gpu==* ]] || continue
        member=$rest
        if [[ " ${CUDA_WANTED[*]} " == *" $name "* ]] || is_intact "$folder/${member##*/}" "$first"; then
            continue
        fi
        CUDA_WANTED+=("$name")
        total=$((total + fetch)) space=$((space + unpacked))
        [ "$fetch" -le "$largest" ] || largest=$fetch
    done < <(cuda_files "$CUDA_MAJOR")
    if [ ${#CUDA_WANTED[@]} = 0 ]; then
        return
    fi
    # pip has a wheel twice for a moment.
    space=$((space + 2 * largest))
    mkdir -p "$ASSETS"
    free=$(($(df --output=avail -k "$ASSETS" | tail -n 1) * 1024 / 1000000))
    local what="${#CUDA_WANTED[@]} packages"
    [ "$1" != system ] || what="onnxruntime-gpu alone"
    say "for CUDA $CUDA_MAJOR: $what, $total MB to fetch, $space MB of disk while that lasts ($free MB are free)"
    [ "$free" -ge "$space" ] || die "${ASSETS#"$ROOT"/} has no room for $space MB: only $free MB are free there"
}

fetch_cuda() { # what plan_cuda has found
    local name platform sha rest folder=${CUDA_LIBRARY%/*}
    while read -r name platform sha rest; do
        if [[ " ${CUDA_WANTED[*]} " != *" $name "* ]]; then
            continue
        fi
        # pip makes its own partial files in TMPDIR.
        TMPDIR=$SCRATCH PIP_NO_CACHE_DIR=1 files_from_wheel "$name" "$platform" "$sha" < <(
            cuda_files "$CUDA_MAJOR" | awk -v wheel="$name" -v folder="$folder" '
                $1 == "wheel" { wanted = ($2 == wheel); next }
                wanted { file = $2; sub(/.*\//, "", file); print $1, $2, folder "/" file }'
        )
    done < <(cuda_files "$CUDA_MAJOR" | sed -n 's/^wheel //p')
}
